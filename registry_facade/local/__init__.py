"""A namespace of this registry that takes pushes, on local storage; off unless ``[facade.local]`` says so."""
