package main

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Redirection costs some microseconds. So that the ends do not hide it, they
// use blocking system calls on one thread here, without Go's poller.

// acceptBare echoes on one connection after the other of the listener fd.
// originalDst asks for the destination as behind a NAT rule; otherwise it is
// the socket's own address.
func acceptBare(fd int, originalDst bool) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.SetNonblock(fd, false); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if originalDst {
			_, err = unix.GetsockoptIPv6Mreq(c, unix.SOL_IP, unix.SO_ORIGINAL_DST)
		} else {
			_, err = unix.Getsockname(c)
		}
		for err == nil {
			n, _ := unix.Read(c, buf)
			if n <= 0 {
				break // the end, or the client's RST
			}
			_, err = unix.Write(c, buf[:n])
		}
		_ = unix.Close(c)
	}
}

func dialBare(to netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func exchangeBare(fd int, msg []byte) error {
	if _, err := unix.Write(fd, msg); err != nil {
		return err
	}
	n, err := unix.Read(fd, msg)
	if err == nil && n != len(msg) {
		err = fmt.Errorf("%d bytes came back of %d", n, len(msg))
	}
	return err
}

// connectBare opens, moves one byte each way and resets, one at a time.
func connectBare(o order) (answer, error) {
	to, err := netip.ParseAddrPort(o.To)
	if err != nil {
		return answer{}, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	took := make([]time.Duration, 0, o.Count)
	one := []byte{1}
	began := time.Now()
	for at := began; len(took) < o.Count; {
		fd, err := dialBare(to)
		if err != nil {
			return answer{}, err
		}
		err = exchangeBare(fd, one)
		if err == nil {
			err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		}
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return answer{}, err
		}
		now := time.Now()
		took, at = append(took, now.Sub(at)), now
	}
	return timed(took, time.Since(began)), nil
}

func pingPongBare(o order) (answer, error) {
	to, err := netip.ParseAddrPort(o.To)
	if err != nil {
		return answer{}, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := dialBare(to)
	if err != nil {
		return answer{}, err
	}
	defer unix.Close(fd)
	msg := make([]byte, o.Size)
	took := make([]time.Duration, 0, 1<<16)
	began := time.Now()
	for at := began; at.Sub(began) < o.For; {
		if err := exchangeBare(fd, msg); err != nil {
			return answer{}, err
		}
		now := time.Now()
		took, at = append(took, now.Sub(at)), now
	}
	return timed(took, time.Since(began)), nil
}
