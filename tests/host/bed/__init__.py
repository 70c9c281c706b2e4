# SPDX-License-Identifier: Apache-2.0
"""The test bed: real guests, storage, libvirtd and receivers, each of which undoes itself.

Only otlp.py, receiver.py and collector.py need packages beyond the standard library: the demo uses the rest.
"""
