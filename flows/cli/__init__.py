"""The command line: `app` has the commands, `options` and `flags` what they share, the rest what they do."""
