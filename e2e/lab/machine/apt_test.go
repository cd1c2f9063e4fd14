package machine

import (
	"os"
	"path/filepath"
	"testing"
)

const deb822 = `# comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Check-Valid-Until: no
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
`

func TestSuiteList(t *testing.T) {
	for name, tc := range map[string]struct{ list, sources, suite, want string }{
		"deb822": {
			sources: deb822, suite: "trixie",
			want: "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian trixie main\n" +
				"deb [arch=amd64 check-valid-until=no signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian-security trixie-security main\n",
		},
		"sid has no security archive": {
			sources: deb822, suite: "sid",
			want: "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian sid main\n",
		},
		"one-line, others with Debian's suite names": {
			list: "deb [signed-by=/k/other.gpg] http://other.example/stable/debian trixie main\n" +
				"deb http://tools.example/linux/debian trixie stable\n" +
				"deb [ arch=amd64 ] http://mirror.example/pub/debian/ trixie main # ours\n" +
				"deb http://sec.example/debian-security trixie-security main\n" +
				"deb-src http://src.example/debian trixie main\n",
			suite: "bookworm",
			want: "deb [arch=amd64] http://mirror.example/pub/debian/ bookworm main\n" +
				"deb [arch=amd64] http://sec.example/debian-security bookworm-security main\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "sources.list"), tc.list)
			write(t, filepath.Join(dir, "sources.list.d", "debian.sources"), tc.sources)
			write(t, filepath.Join(dir, "sources.list.d", "ignored.bak"), "deb http://bak.example/debian sid main\n")
			all, err := aptSources(dir)
			if err != nil {
				t.Fatal(err)
			}
			main, sec, err := debianArchives(all)
			if err != nil {
				t.Fatal(err)
			}
			if got := suiteList(main, sec, tc.suite); got != tc.want {
				t.Errorf("list\n%swant\n%s", got, tc.want)
			}
		})
	}
}

func TestNoDebian(t *testing.T) {
	all := parseOneLine("deb http://archive.example/ubuntu noble main\n")
	if _, _, err := debianArchives(all); err == nil {
		t.Error("took another distribution for Debian")
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
