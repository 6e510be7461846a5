// Package web holds the WIC, the page that registers and calls, as files for wwsf to serve.
//
// The page is written in TypeScript under src and built by build.sh into dist, which is committed, so
// that go build needs no Node; check.sh rebuilds it and compares. Two files are entries and have fixed
// names, Index and Missing. All others lie under assets/ and carry the hash of their content in their
// name, so they never change: a browser may keep them for ever.
//
// Here are no HTTP handler, no header and no configuration: those are wwsf's.
package web

import (
	"bytes"
	"compress/gzip"
	"embed"
	"io/fs"
	"path"
	"sync"
)

//go:generate ./build.sh

//go:embed dist
var dist embed.FS

// Names of the entries.
const (
	Index   = "index.html" // the page
	Missing = "404.html"   // what is shown where there is no page
)

// Prefix begins the name of every file with a content hash.
const Prefix = "assets/"

// File is one file of the page.
type File struct {
	Name string // within dist: "index.html", "assets/main-3F….js"
	Type string // media type, with charset where it is text
	Body []byte // must not be changed

	gzip func() []byte
}

// Gzip is Body compressed (RFC 1952), made at the first call; nil where that would not be smaller.
func (f *File) Gzip() []byte { return f.gzip() }

// Files are all files of the page, by name. The map is the caller's.
func Files() map[string]*File {
	files := make(map[string]*File)
	err := fs.WalkDir(dist, "dist", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := dist.ReadFile(p)
		if err != nil {
			return err
		}
		name := p[len("dist/"):]
		files[name] = &File{Name: name, Type: mediaType(name), Body: body, gzip: sync.OnceValue(func() []byte { return compress(body) })}
		return nil
	})
	if err != nil {
		panic("web: " + err.Error()) // of an embedded file system: cannot be
	}
	return files
}

// mediaType goes by name alone, not by the machine's mime.types, so that every node says the same.
func mediaType(name string) string {
	switch path.Ext(name) {
	case ".html":
		return "text/html; charset=utf-8"
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	case ".txt":
		return "text/plain; charset=utf-8"
	}
	return "application/octet-stream"
}

func compress(body []byte) []byte {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		panic(err) // only for an unknown level
	}
	if _, err := w.Write(body); err != nil {
		panic(err) // bytes.Buffer takes everything
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	if b.Len() >= len(body) {
		return nil
	}
	return b.Bytes()
}
