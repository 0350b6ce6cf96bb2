"""Pages over the stored facts, in a process of its own: what runs do, why they wait, and the verbs that free them."""

HOST = "127.0.0.1"
PORT = 8577  # where nobody says another one
ANY_PORT = -1  # beside a host where none is said: that one, or a free one where it is taken
