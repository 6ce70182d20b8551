"""`shapes-motion`, the embedded model for videos: its moving world, and how a video is read back into words."""
