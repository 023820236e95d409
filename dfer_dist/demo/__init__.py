"""The demo data set: drawn faces, their captions and landmarks, and the tiny pretrained weights."""
