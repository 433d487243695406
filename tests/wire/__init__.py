"""Tests over real sockets: a scripted origin, the gateway, and a client that sends any bytes."""
