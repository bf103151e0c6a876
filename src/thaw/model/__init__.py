"""A trained model, its file, and the models that ship with the package."""
