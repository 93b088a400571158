package redirect

import "github.com/ambitmesh/ambit/cni/netns"

// Proxied counts the connections of the pod that the proxy carries or is about
// to: its sockets but for HBONE connections, which stay open between streams. A
// stream shows as the proxy's connection with the application.
func Proxied(all []netns.Socket) int {
	n := 0
	for _, s := range all {
		switch {
		case !s.IsProxy(), s.Local.Port() == HBONEPort, s.Remote.Port() == HBONEPort:
		case s.State == netns.FinWait2 && s.Inode == 0:
			// The proxy has closed it and everything is acknowledged; only
			// the application has not closed its end.
		default:
			n++
		}
	}
	return n
}
