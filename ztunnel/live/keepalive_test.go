package live

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// What the kernel has been told, asked of the kernel.
//
//ambit:feature traffic-keepalive-settings
func TestKeepAlive(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, c := range []struct {
		name                           string
		k                              KeepAlive
		on, idle, every, count, userMS int
	}{
		{"the reference's", KeepAlive{}, 1, 180, 180, 9, 0},
		{"with a limit for unacknowledged data", KeepAlive{UserTimeout: true}, 1, 180, 180, 9, 1800_000},
		{"other times", KeepAlive{Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 2, UserTimeout: true}, 1, 10, 5, 2, 20_000},
		{"off", KeepAlive{Off: true}, 0, -1, -1, -1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			tcp := conn.(*net.TCPConn)
			c.k.Set(tcp)
			raw, err := tcp.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range []struct {
				name       string
				level, opt int
				want       int
			}{
				{"SO_KEEPALIVE", syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, c.on},
				{"TCP_KEEPIDLE", syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, c.idle},
				{"TCP_KEEPINTVL", syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, c.every},
				{"TCP_KEEPCNT", syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, c.count},
				{"TCP_USER_TIMEOUT", syscall.IPPROTO_TCP, tcpUserTimeout, c.userMS},
			} {
				if o.want < 0 {
					continue
				}
				var got int
				if cerr := raw.Control(func(fd uintptr) { got, err = syscall.GetsockoptInt(int(fd), o.level, o.opt) }); cerr != nil || err != nil {
					t.Fatal(cerr, err)
				}
				if got != o.want {
					t.Errorf("%s = %d, want %d", o.name, got, o.want)
				}
			}
		})
	}
}
