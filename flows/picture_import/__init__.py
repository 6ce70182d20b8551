"""The parameters that a program left in a picture, as a spec: what is here, what is missing, what is left out."""
