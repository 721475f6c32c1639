"""What operators see and do: on the command line, over HTTP, and in numbers."""
