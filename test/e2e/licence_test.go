package e2e_test

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"wicgate/test/lab"
)

// licences that go with Apache-2.0, by a sentence that each of them has.
var licences = [][2]string{
	{"Apache-2.0", "Apache License"},
	{"MIT", "Permission is hereby granted, free of charge, to any person obtaining a copy"},
	{"BSD", "Redistribution and use in source and binary forms"},
	{"ISC", "Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee"},
	{"ISC (old)", "Permission to use, copy, modify, and distribute this software for any purpose with or without fee"},
	{"CC0-1.0", "CC0 1.0 Universal"}, // public domain; without a grant of patents
	{"MPL-2.0", "Mozilla Public License Version 2.0"},
}

// TestLicences reads which modules are linked into the binary, and the licence of each.
func TestLicences(t *testing.T) {
	info, err := buildinfo.ReadFile(lab.Binary(t))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "env", "GOMODCACHE").Output()
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, m := range info.Deps {
		dir := filepath.Join(strings.TrimSpace(string(out)), escape(m.Path)+"@"+escape(m.Version))
		files, err := filepath.Glob(filepath.Join(dir, "[LC][IO][CP][EY][NI][CSN][EG]*")) // LICENSE, LICENCE, COPYING
		if err != nil || len(files) == 0 {
			t.Errorf("%s %s: no licence file in %s", m.Path, m.Version, dir)
			continue
		}
		found := ""
		for _, f := range files {
			if st, err := os.Stat(f); err == nil && st.IsDir() { // pion's folder of licence texts
				continue
			}
			b, err := os.ReadFile(f)
			if err != nil {
				t.Error(err)
			}
			text := strings.Join(strings.Fields(string(b)), " ")
			for _, l := range licences {
				if strings.Contains(text, l[1]) {
					found = l[0]
				}
			}
		}
		if found == "" {
			t.Errorf("%s %s: its licence is none of those that go with ours", m.Path, m.Version)
		}
		count[found]++
	}
	if len(info.Deps) < 10 {
		t.Errorf("only %d modules seen; is the binary stripped of its list?", len(info.Deps))
	}
	t.Logf("%d modules: %v", len(info.Deps), count)
}

// escape is how the module cache writes capital letters.
func escape(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsUpper(r) {
			b.WriteByte('!')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
