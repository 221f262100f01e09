"""Files that hold series, each kind read as a source."""
