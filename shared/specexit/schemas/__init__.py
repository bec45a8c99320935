"""The typed schema of every command: YAML, flags, help and saved run file in one."""
