"""`shapes-motion`, the embedded model for clips: its moving world, and how a clip is read back into words."""
