"""The model files of the home and of linked folders, as people and scripts see them."""
