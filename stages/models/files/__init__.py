"""Models in single files, as people have them: what a file is by its header alone, and loading it strictly."""
