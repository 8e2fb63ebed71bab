"""Files that appear whole or not at all; no room below or beside is known here."""
