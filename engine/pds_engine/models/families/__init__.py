"""The families of models that are served, a file each; models.registry lists them."""
