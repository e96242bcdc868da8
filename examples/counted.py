# SPDX-License-Identifier: Apache-2.0
"""Lookup counts and FORGET: a tree without end that keeps nothing.  virtiofs mount examples/counted.py:Endless /mnt

Every name is there: a directory, but for those that begin with "nodes", which are files that say how many nodes the
guest knows now.  A node exists from its first lookup until the guest has forgotten all of them.
"""

import os
import stat
import threading

from virtiofs import Attributes, Entry, Filesystem, Opened

ROOT = 1


class Node:
    def __init__(self, number, parent, name):
        self.number = number
        self.key = parent, name
        self.lookups = 0


class Endless(Filesystem):
    threads = 0  # nothing here waits

    def __init__(self):
        self.lock = threading.Lock()  # there may be several queues all the same
        self.reset()

    def reset(self):
        """The guest knows nothing: a session begins."""
        with self.lock:
            self.nodes = {}
            self.by_name = {}
            self.next = ROOT + 1

    def attributes(self, node):
        if node is not None and node.key[1].startswith(b"nodes"):
            return Attributes(stat.S_IFREG | 0o444, size=0, valid=0)
        return Attributes(stat.S_IFDIR | 0o555, nlink=2)

    def find(self, number):
        if number == ROOT:
            return None
        try:
            return self.nodes[number]
        except KeyError:
            raise OSError(116, os.strerror(116)) from None  # ESTALE: the kernel walks the path again

    def lookup(self, parent, name):
        with self.lock:
            self.find(parent)
            node = self.by_name.get((parent, name))
            if node is None:
                node = self.by_name[parent, name] = self.nodes[self.next] = Node(self.next, parent, name)
                self.next += 1  # a number is never used again, so there is no need of generations
            node.lookups += 1  # once for each Entry that is returned
            return Entry(node.number, self.attributes(node))

    def forget(self, number, lookups):
        with self.lock:
            node = self.nodes.get(number)
            if node is not None:
                node.lookups -= lookups
                if node.lookups <= 0:
                    del self.nodes[number], self.by_name[node.key]

    def getattr(self, number, handle):
        with self.lock:
            return self.attributes(self.find(number))

    def readdir(self, number, handle):
        return [(b"nodes", stat.S_IFREG)]

    def open(self, number, flags):
        return Opened(direct_io=True)  # the size is not known before it is read

    def read(self, number, handle, offset, size):
        with self.lock:
            return f"{len(self.nodes)}\n".encode()[offset : offset + size]
