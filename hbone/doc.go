// Package hbone owns the tunnel between two mesh proxies: TCP streams as
// HTTP/2 CONNECT streams on one mutually authenticated TLS 1.3 connection, both
// halves, compatible with Istio's ambient mode.
//
// It is its own HTTP/2 layer rather than net/http because a tunnel needs what that cannot
// give: half-close on a server stream, no goroutine between the
// connection and the application's socket, and one system call for many
// records. Header blocks go through hpack and every frame but DATA through
// http2.Framer; DATA is parsed in place and passed on as it arrives.
//
// Goroutines: per connection a reader and a writer that normally sleeps; per
// relayed tunnel the one that called Relay, and none for the other direction.
// The connection reader never blocks on anything but reading.
//
// Locks, in the order they are taken: recvHalf.mu, sendHalf.mu, writer.mu, Conn.mu,
// Budget.mu (of a part or of the whole, never of both). A stream's two halves are
// never locked together. Nothing blocks under any of them.
package hbone
