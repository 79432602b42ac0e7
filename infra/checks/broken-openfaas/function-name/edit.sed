s/^  store:/  stroe:/
