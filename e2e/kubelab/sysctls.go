package kubelab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The kubelet writes these, and they are the whole machine's (kernel.* and vm.*
// have no namespace). They are saved before the first cluster starts and put
// back when the last one ends. Their values during a run, where we set them:
var sharedSysctls = []struct{ name, run string }{
	{"fs/inotify/max_user_instances", "1024"}, // 128 is too few for two kubelets
	{"kernel/keys/root_maxbytes", ""},
	{"kernel/keys/root_maxkeys", ""},
	{"kernel/panic", ""},
	{"kernel/panic_on_oops", ""},
	{"vm/overcommit_memory", ""},
}

// sysctlFile is below /run, so that a reboot, which resets the sysctls, forgets
// the saved values with them.
const sysctlFile = "/run/ambit-kubelab-sysctls.json"

// savedSysctls is the file's content; Holders are the state folders of the
// clusters that run.
type savedSysctls struct {
	Values  map[string]string `json:"values"`
	Holders []string          `json:"holders"`
}

func acquireSysctls(holder string) error {
	return withSysctls(func(s *savedSysctls) error {
		// A holder whose state folder has gone was removed by hand.
		s.Holders = slices.DeleteFunc(s.Holders, func(h string) bool { _, err := os.Stat(h); return err != nil })
		if len(s.Values) == 0 {
			s.Values = map[string]string{}
			for _, c := range sharedSysctls {
				v, err := readSysctl(c.name)
				if err != nil {
					return err
				}
				s.Values[c.name] = v
			}
		}
		for _, c := range sharedSysctls {
			if c.run == "" {
				continue
			}
			if err := writeSysctl(c.name, c.run); err != nil {
				return err
			}
		}
		if !slices.Contains(s.Holders, holder) {
			s.Holders = append(s.Holders, holder)
		}
		return nil
	})
}

func releaseSysctls(holder string) error {
	return withSysctls(func(s *savedSysctls) error {
		s.Holders = slices.DeleteFunc(s.Holders, func(h string) bool {
			if h == holder {
				return true
			}
			_, err := os.Stat(h)
			return err != nil
		})
		if len(s.Holders) > 0 {
			return nil
		}
		var errs []error
		for name, v := range s.Values {
			if now, err := readSysctl(name); err == nil && now == v {
				continue
			}
			errs = append(errs, writeSysctl(name, v))
		}
		return errors.Join(errs...)
	})
}

// withSysctls runs change on the file's content under its lock; the file exists
// only while it has holders.
func withSysctls(change func(*savedSysctls) error) error {
	f, err := lockFile(sysctlFile)
	if err != nil {
		return fmt.Errorf("lock saved sysctls: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	var s savedSysctls
	if len(b) > 0 {
		if err := json.Unmarshal(b, &s); err != nil {
			return fmt.Errorf("%s: %w", sysctlFile, err)
		}
	}
	if err := change(&s); err != nil {
		return fmt.Errorf("sysctls: %w", err)
	}
	if len(s.Holders) == 0 {
		return os.Remove(sysctlFile)
	}
	if b, err = json.Marshal(s); err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	return err
}

// lockFile opens and locks path. The holder before us may have removed it while
// we waited; then the lock is on nothing and the file is made anew.
func lockFile(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			f.Close()
			return nil, err
		}
		mine, err1 := f.Stat()
		there, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, there) {
			return f, nil
		}
		f.Close()
	}
}

func readSysctl(name string) (string, error) {
	b, err := os.ReadFile("/proc/sys/" + name)
	return strings.TrimSpace(string(b)), err
}

func writeSysctl(name, value string) error {
	return os.WriteFile("/proc/sys/"+name, []byte(value), 0o644)
}
