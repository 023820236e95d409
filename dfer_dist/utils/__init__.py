"""Files, locks, logging, process pools and facts about the machine."""
