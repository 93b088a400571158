package ambitlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/ambitmesh/ambit/e2e/kubelab"
)

const (
	// Image is the name of the image that is installed, Version what its
	// programs say of themselves.
	Image   = "ambit.local/ambit:dev"
	Version = "ambitlab"
)

// product is what is built of the repository, once for all clusters of a test
// process.
type product struct {
	root, image, cli string
}

var built = sync.OnceValues(build)

// Main runs the tests of a package. It is the process's first word: kubelab
// starts the same program again for its own purposes.
func Main(m *testing.M) int {
	kubelab.Init()
	klog.SetLogger(logr.Discard()) // client-go tells of every stream that a test ends
	dir, err := os.MkdirTemp("", "ambitlab-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Setenv(folder, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// folder names the variable with the folder of the test process: Main makes
// and removes it.
const folder = "AMBITLAB_FOLDER"

func build() (product, error) {
	dir := os.Getenv(folder)
	root, err := Root()
	if dir == "" || err != nil {
		return product{}, errors.Join(err, errors.New("the package's TestMain does not call ambitlab.Main"))
	}
	p := product{root: root, image: filepath.Join(dir, "ambit.tar"), cli: filepath.Join(dir, "ambit")}
	return p, errors.Join(
		program(root, "go", "run", "./deploy/image", "-version", Version, "-name", Image, "-platforms", "linux/"+runtime.GOARCH, "-o", p.image),
		program(root, "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+Version, "-o", p.cli, "./cmd/ambit"))
}

// Root is the repository, above the package that is tested.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "deploy/ambit/kustomization.yaml")); err == nil {
			return d, nil
		}
	}
	return "", fmt.Errorf("no deploy/ambit above %s", dir)
}

// program runs something in the repository to success.
func program(root string, args ...string) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
