"""Configurations of the proxies that tailrace is compared with."""
