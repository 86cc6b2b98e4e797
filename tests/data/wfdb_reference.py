#!/usr/bin/env python3
"""Writes the samples that the PyPI package wfdb reads from records, to compare with ours:

    python3 -m venv venv && venv/bin/pip install wfdb
    venv/bin/python tests/data/wfdb_reference.py FOLDER HEADER.hea...
    TICKCAST_WFDB=FOLDER cargo test -p tickcast-ecg wfdb_python -- --ignored

FOLDER/list has a line for each signal: header, signal, unit, file of little-endian doubles in that unit. The frames are not
averaged, so that a signal with several samples a frame has all of them.
"""
import os
import sys

import numpy
import wfdb

folder, headers = sys.argv[1], sys.argv[2:]
os.makedirs(folder, exist_ok=True)
with open(os.path.join(folder, "list"), "w") as listed:
    for header in map(os.path.abspath, headers):
        record = wfdb.rdrecord(header.removesuffix(".hea"), smooth_frames=False, m2s=True)
        for signal, values in enumerate(record.e_p_signal):
            name = "%s.%d" % (os.path.basename(header), signal)
            numpy.asarray(values, dtype="<f8").tofile(os.path.join(folder, name))
            listed.write("%s\t%d\t%s\t%s\n" % (header, signal, record.units[signal], name))
