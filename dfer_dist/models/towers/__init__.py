"""The image, video and text towers of all families."""
