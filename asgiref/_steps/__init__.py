"""Bridged iterators and context managers, which consist of several calls, the steps.

Each step is a bridged call, with all its properties. In addition, all steps of one iteration or one ``with`` block run
on one thread (or in one task) and in one context, and an open iteration or block is always ended there. These modules
are imported on first use of their functions in ``asgiref.sync``.
"""
