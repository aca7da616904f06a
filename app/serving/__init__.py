"""Serves an exported model over HTTP; nothing in this package needs what training needs."""
