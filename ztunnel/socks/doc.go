// Package socks owns the server's half of the SOCKS5 handshake (RFC 1928): no
// authentication, CONNECT only. Where the connection goes then is its caller's
// business.
package socks
