"""Ways to do with less searching, fewer keys or no datastore: one file for each, one paper each."""
