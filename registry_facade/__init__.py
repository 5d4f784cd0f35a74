"""The registry facade: a mirror that composes images on the fly and downloads each blob once."""
