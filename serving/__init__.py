"""The path of a job, from request to clip.

Rooms: ``plan`` (plain values) ← ``jobs`` (the Redis queue), ``models`` ← ``engine`` (steps),
``media`` (files), ``api`` (HTTP). Nothing here may know how or where it is deployed.
"""
