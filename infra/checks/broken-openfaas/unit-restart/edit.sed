/^Restart=/d
