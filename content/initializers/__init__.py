"""What a workspace starts with, when it has no backup."""
