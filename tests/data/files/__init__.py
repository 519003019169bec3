"""Tests of whatever people bring."""
