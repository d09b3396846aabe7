import signal

# A job in a shell's background starts with Ctrl-C ignored and hands that on to every process that a test starts and
# interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
