"""An exported model over HTTP; nothing here needs what training needs."""
