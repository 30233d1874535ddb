"""A name server that knows no names: it answers NXDOMAIN to everything, over UDP. `nameserver.py ADDRESS`

It stands outside the cluster, where a site's name server would be; without one each unknown name would cost a time-out."""

import socket
import struct
import sys

NXDOMAIN, RESPONSE, RECURSION_AVAILABLE = 3, 0x8000, 0x0080
HEADER = struct.Struct("!6H")


def answer(query):
    """The query's header and question, marked as an answer that there is no such name; None for what is no query."""
    if len(query) < HEADER.size:
        return None
    ident, flags, questions, _, _, _ = HEADER.unpack_from(query)
    if flags & RESPONSE or questions != 1:
        return None
    end = HEADER.size
    while end < len(query) and query[end]:
        end += 1 + query[end]
    end += 5  # the root label, type, class
    if end > len(query):
        return None
    flags = RESPONSE | RECURSION_AVAILABLE | (flags & 0x7900) | NXDOMAIN
    return HEADER.pack(ident, flags, 1, 0, 0, 0) + query[HEADER.size : end]


def serve(address, port=53):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind((address, port))
        print("ready", flush=True)
        while True:
            query, client = s.recvfrom(4096)
            reply = answer(query)
            if reply:
                s.sendto(reply, client)


if __name__ == "__main__":
    serve(sys.argv[1])
