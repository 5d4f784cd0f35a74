"""What image specs put on top of a base: layers of other images, and layers made here from files."""
