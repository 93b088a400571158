package handoff

import (
	"fmt"
	"io"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// maxMessage is the receive buffer of the implementations in the field.
	// The longest legal Add (uid, pod, namespace and account names at their
	// Kubernetes limits) stays below it.
	maxMessage = 1024
	// maxFDs bounds what one Add carries: namespace, four listeners and 15008
	// on up to 27 addresses. The kernel's own limit is 253 (SCM_MAX_FD).
	maxFDs = 32
)

// frameError is a datagram that was received whole or in part but cannot be
// used. The conversation may still be told about it.
type frameError struct{ what string }

func (e *frameError) Error() string { return e.what }

// readDatagram reads one datagram and the descriptors beside it. When it
// returns an error it has closed every descriptor that arrived.
func readDatagram(c *net.UnixConn) ([]byte, []*os.File, error) {
	buf := make([]byte, maxMessage)
	oob := make([]byte, unix.CmsgSpace(maxFDs*4))
	// The net package adds MSG_CMSG_CLOEXEC: no child ever inherits these.
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, nil, err
	}
	files, err := parseRights(oob[:oobn])
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		// Closing what did arrive matters: the kernel installs as many
		// descriptors as fit before it sets the flag (unix(7)).
		err = &frameError{fmt.Sprintf("control data truncated: more than %d descriptors", maxFDs)}
	}
	if err == nil && flags&unix.MSG_TRUNC != 0 {
		err = &frameError{fmt.Sprintf("message truncated: longer than %d bytes", maxMessage)}
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		closeAll(files)
		return nil, nil, err
	}
	return buf[:n], files, nil
}

// parseRights turns control data into files. The descriptors it can read are
// returned even with an error, so that the caller can close them.
func parseRights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, &frameError{fmt.Sprintf("control data unreadable: %v", err)}
	}
	var files []*os.File
	var bad error
	for i := range messages {
		if messages[i].Header.Level != unix.SOL_SOCKET || messages[i].Header.Type != unix.SCM_RIGHTS {
			bad = &frameError{fmt.Sprintf("unexpected control message of type %d", messages[i].Header.Type)}
			continue
		}
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			bad = &frameError{fmt.Sprintf("descriptors unreadable: %v", err)}
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "zds"))
		}
	}
	return files, bad
}

// writeDatagram sends one message with duplicates of files. The files stay the
// caller's; one that has been closed meanwhile gives os.ErrClosed and nothing
// is sent.
func writeDatagram(c *net.UnixConn, message []byte, files []*os.File) error {
	if len(message) > maxMessage {
		return &frameError{fmt.Sprintf("message of %d bytes: the limit is %d", len(message), maxMessage)}
	}
	if len(files) > maxFDs {
		return &frameError{fmt.Sprintf("%d descriptors: the limit is %d", len(files), maxFDs)}
	}
	var oob []byte
	if len(files) > 0 {
		fds, err := duplicate(files)
		defer func() {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}()
		if err != nil {
			return err
		}
		oob = unix.UnixRights(fds...)
	}
	_, _, err := c.WriteMsgUnix(message, oob, nil)
	return err
}

// duplicate makes descriptors that nobody else can close under the sendmsg.
func duplicate(files []*os.File) ([]int, error) {
	fds := make([]int, 0, len(files))
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return fds, err
		}
		var dupErr error
		err = raw.Control(func(fd uintptr) {
			var d int
			if d, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); dupErr == nil {
				fds = append(fds, d)
			}
		})
		if err != nil {
			// The raw error of a closed file is an internal one of package os.
			return fds, fmt.Errorf("duplicate descriptor: %w (%w)", os.ErrClosed, err)
		}
		if dupErr != nil {
			return fds, fmt.Errorf("duplicate descriptor: %w", dupErr)
		}
	}
	return fds, nil
}

func closeAll(files []*os.File) {
	for _, f := range slices.Backward(files) {
		f.Close()
	}
}
