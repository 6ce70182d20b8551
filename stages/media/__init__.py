"""Media files: PNG, source pictures and masks, and ffmpeg."""
