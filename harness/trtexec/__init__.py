"""trtexec's logs, read, and its JSON files, read and written."""
