package wan

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestIsolate(t *testing.T) {
	hosts(t, "probe")
	if os.Getenv(isolatedVariable) != "" {
		t.Skip("the tests run isolated")
	}
	cmd := self(t, "isolated", "an argument")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said = append(said, lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	here, err := os.Readlink(threadNamespace)
	if err != nil {
		t.Fatal(err)
	}
	if len(said) != 2 || strings.Contains(said[0], here) || said[0] != said[1] {
		t.Errorf("here is %s, and it said %q", here, said)
	}
}

// isolated says where it is and who, then where a child of it is. It checks what can be reached.
func isolated() error {
	if err := Isolate(netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("198.51.100.0/24")); err != nil {
		return err
	}
	where, err := os.Readlink(threadNamespace)
	if err != nil {
		return err
	}
	fmt.Println(where, os.Args[1:])
	if os.Getenv("WAN_TEST_CHILD") != "" {
		return nil
	}
	for _, address := range []string{"10.1.2.3:7070", "10.200.0.1:7070", "198.51.100.7:7070", "127.0.0.1:7070"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		defer l.Close()
		c, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		_ = c.Close()
	}
	if c, err := net.Dial("udp", "203.0.113.1:9"); err == nil {
		return errors.Join(errors.New("there is a way out"), c.Close())
	}
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Env = append(os.Environ(), "WAN_TEST_CHILD=1")
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	return child.Run()
}
