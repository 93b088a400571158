package enroll

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
)

// UnreachableError says that no agent answered: nothing is known about the
// pod, which is different from a refusal.
type UnreachableError struct{ Err error }

func (e *UnreachableError) Error() string { return "node agent does not answer: " + e.Err.Error() }
func (e *UnreachableError) Unwrap() error { return e.Err }

// Call asks the agent behind socket. It fails with *UnreachableError when there
// was no whole answer, which includes an agent that ended while thinking.
func Call(ctx context.Context, socket string, r Request) (Response, error) {
	r.Version = Version
	b, err := json.Marshal(r)
	if err != nil {
		return Response{}, fmt.Errorf("request: %w", err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return Response{}, &UnreachableError{err}
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := conn.Write(append(b, '\n')); err != nil {
		return Response{}, &UnreachableError{errors.Join(err, ctx.Err())}
	}
	line, err := readLine(conn)
	if err != nil {
		return Response{}, &UnreachableError{errors.Join(err, ctx.Err())}
	}
	return decodeResponse(line)
}

// readLine reads one message. Every message ends with a newline, so that one
// cut short is not mistaken for a whole one.
func readLine(r io.Reader) ([]byte, error) {
	line, err := bufio.NewReader(io.LimitReader(r, maxMessage)).ReadBytes('\n')
	if err != nil {
		if errors.Is(err, io.EOF) && len(line) >= maxMessage {
			return nil, fmt.Errorf("message longer than %d bytes", maxMessage)
		}
		if errors.Is(err, io.EOF) && len(line) > 0 {
			return nil, io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return line, nil
}
