// The tools that build wicgate, apart from what wicgate is built of, so that the
// product's own module graph stays small. Run one with
//
//	go tool -modfile=tools/go.mod esbuild --version
module wicgate/tools

go 1.26.0

tool github.com/evanw/esbuild/cmd/esbuild

require (
	github.com/evanw/esbuild v0.28.2 // indirect
	golang.org/x/sys v0.0.0-20220715151400-c0bba94af5f8 // indirect
)
