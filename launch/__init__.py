"""Launch scripts: absl flags → a frozen config → one library call."""

if __name__ != "elrt_keras.launch":
    raise ImportError(f"Import this package as `elrt_keras.launch`. Received: import of {__name__!r}")
