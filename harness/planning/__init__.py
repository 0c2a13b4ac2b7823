"""From what a user requires to strategies, without building one."""
