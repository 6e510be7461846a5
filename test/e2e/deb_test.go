package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"wicgate/internal/config"
	"wicgate/test/lab"
)

// debianPackage builds the package of make deb.
func debianPackage(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "wicgate.deb")
	tool(t, deploy, "./deb/build.sh", lab.Binary(t), "0~1.test", name)
	return name
}

// TestDebianPackage: what is in the package, where, with which modes, and what it says of itself.
func TestDebianPackage(t *testing.T) {
	deb, dir := debianPackage(t), t.TempDir()
	list := tool(t, dir, "dpkg-deb", "--contents", deb)
	for _, want := range []string{
		"-rwxr-xr-x root/root ./usr/bin/wicgate",
		"-rw-r--r-- root/root ./usr/lib/systemd/system/wicgate.service",
		"-rw-r--r-- root/root ./usr/lib/sysusers.d/wicgate.conf",
		"-rw-r----- root/root ./etc/wicgate/wicgate.yaml",
		"-rw-r--r-- root/root ./etc/default/wicgate",
		"-rw-r--r-- root/root ./usr/share/doc/wicgate/copyright",
		"-rw-r--r-- root/root ./usr/share/doc/wicgate/docs/turn.md",
	} {
		mode, name, _ := strings.Cut(want, " ./")
		if !regexp.MustCompile(`(?m)^` + mode + ` .* \./` + regexp.QuoteMeta(name) + `$`).MatchString(list) {
			t.Errorf("no %s in\n%s", want, list)
		}
	}
	fields := tool(t, dir, "dpkg-deb", "--field", deb)
	for _, want := range []string{"Package: wicgate\n", "Version: 0~1.test\n", "Architecture: " + tool(t, dir, "dpkg", "--print-architecture"), "Depends: systemd\n"} {
		if !strings.Contains(fields, want) {
			t.Errorf("no %q in\n%s", want, fields)
		}
	}
	tool(t, dir, "dpkg-deb", "--raw-extract", deb, dir)
	tool(t, dir, "md5sum", "--check", "--quiet", "DEBIAN/md5sums")
	for _, name := range strings.Fields(read(t, filepath.Join(dir, "DEBIAN/conffiles"))) {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("conffiles: %v", err)
		}
	}
	if out := tool(t, dir, "usr/bin/wicgate", "version"); !strings.HasPrefix(out, "wicgate ") {
		t.Errorf("version: %s", out)
	}
	if _, err := config.Load(filepath.Join(dir, "etc/wicgate/wicgate.yaml")); err != nil {
		t.Error(err)
	}
	unit := read(t, filepath.Join(dir, "usr/lib/systemd/system/wicgate.service"))
	if strings.Contains(unit, "/usr/local/") || !strings.Contains(unit, "ExecStart=/usr/bin/wicgate run ") {
		t.Errorf("the unit runs another binary:\n%s", unit)
	}
	notices := read(t, filepath.Join(dir, "usr/share/doc/wicgate/copyright"))
	for _, want := range []string{"Apache License", "The Go standard library", "github.com/nats-io/nats-server/v2 ", "github.com/pion/dtls/v3 "} {
		if !strings.Contains(notices, want) {
			t.Errorf("no notice of %s", want)
		}
	}
}

// TestDebianInstall: dpkg installs it below a folder, makes the user that the unit runs as, and purges it.
func TestDebianInstall(t *testing.T) {
	if ids := strings.Fields(read(t, "/proc/self/gid_map")); os.Geteuid() != 0 || ids[2] == "1" {
		t.Skip("needs root, whose files are given to another group")
	}
	deb, root := debianPackage(t), t.TempDir()
	for _, dir := range []string{"info", "updates"} {
		if err := os.MkdirAll(filepath.Join(root, "var/lib/dpkg", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg/status"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// Its scripts run outside of the folder, told where it is, as nothing is in there that could run them.
	dpkg := func(args ...string) {
		t.Helper()
		tool(t, root, append([]string{"dpkg", "--root=" + root, "--force-script-chrootless", "--force-depends"}, args...)...)
	}
	dpkg("--install", deb)
	m := regexp.MustCompile(`(?m)^wicgate:x:\d+:(\d+):.*:/var/lib/wicgate:/usr/sbin/nologin$`).FindStringSubmatch(read(t, filepath.Join(root, "etc/passwd")))
	if m == nil {
		t.Fatal("no user")
	}
	for name, want := range map[string]os.FileMode{"etc/wicgate": os.ModeDir | 0o750, "etc/wicgate/wicgate.yaml": 0o640} {
		st, err := os.Stat(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if gid := st.Sys().(*syscall.Stat_t).Gid; st.Mode() != want || fmt.Sprint(gid) != m[1] {
			t.Errorf("%s: %v of group %d, want %v of %s", name, st.Mode(), gid, want, m[1])
		}
	}
	state := filepath.Join(root, "var/lib/wicgate")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	dpkg("--remove", "wicgate")
	if _, err := os.Stat(state); err != nil {
		t.Errorf("removal takes the keys: %v", err)
	}
	dpkg("--purge", "wicgate")
	for _, name := range []string{"var/lib/wicgate", "etc/wicgate", "usr/bin/wicgate"} {
		if _, err := os.Stat(filepath.Join(root, name)); err == nil {
			t.Errorf("%s is left after a purge", name)
		}
	}
}
