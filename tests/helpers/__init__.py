"""What tests share: servers, trial runs and input files."""
